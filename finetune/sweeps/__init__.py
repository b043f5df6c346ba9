"""How are many runs run, and what did they come to?"""

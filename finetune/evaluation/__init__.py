"""What do the base and the tuned model answer, and which is better?"""

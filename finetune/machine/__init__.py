"""On what does it run, and how much does it hold?"""

"""How does a command line become a valid run?"""

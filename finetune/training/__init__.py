"""What does the trainer read, and how is it trained?"""

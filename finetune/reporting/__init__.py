"""What does a person see of one run: terminal, page, W&B?"""

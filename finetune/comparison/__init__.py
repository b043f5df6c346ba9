"""Which of these runs is best, and what sets them apart?"""

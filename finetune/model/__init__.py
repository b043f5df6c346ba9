"""What exactly is trained?"""

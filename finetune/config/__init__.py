"""What may be configured?"""

"""Which rows are trained on, which select, which are held out?"""

"""Which run is this, what lies in its folder, how did it end?"""

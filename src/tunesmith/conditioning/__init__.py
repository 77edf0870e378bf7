"""What a song is asked for with, as ids: artists, genres, lyrics and timing.  (No parameters: those are in models/.)"""

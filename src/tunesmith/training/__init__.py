"""Data, objectives and runs that teach codecs and language models."""

"""Other projects' checkpoints <-> our layout, which is Hugging Face's.

settings.py reads audiocraft's settings text, configurations.py maps it, keymaps.py maps tensors, audiocraft.py has its
two files, folders.py has ours, checkpoints.py puts whole models together: start there.
"""

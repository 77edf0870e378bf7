"""Other projects' checkpoints <-> our layout, which is Hugging Face's.

checkpoints.py puts whole models together: start there.  folders.py has our files.  Of audiocraft's MusicGen and
EnCodec, settings.py reads the settings text, configurations.py maps it, keymaps.py maps tensors, audiocraft.py has the
two files.  Of OpenAI's Jukebox, jukebox_settings.py maps settings, jukebox_keys.py tensors, jukebox.py has the files,
and jukebox_hub.py puts right what Hugging Face's configurations say of it.
"""

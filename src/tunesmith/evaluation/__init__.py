"""How good is a model?  Measures of codecs, language models and of the music that they make.

Everything here is a function of tensors, arrays or what an analyser reported; nothing reads files, trains or draws its
own random numbers.  `scripts/evaluate_pocket.py` puts the functions together and judges the bundled model.

    codec.py      how close a reconstruction is, how evenly the codes are used
    language.py   nats per token of held-out music with its own text, without text, with wrong text, and by counting
    control.py    does the music follow the prompt?
    distance.py   distances between sets of embeddings, the longest run of codes taken over from elsewhere
    sanity.py     is it sound at all: silent, clipped, noise?
"""

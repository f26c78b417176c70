"""What knob_effects.py is made of: the neighbours of a config, and the tables of what they are worth."""

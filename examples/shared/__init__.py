"""Parts that several of the scripts in this folder share; `python examples/x.py` finds them as `shared`."""

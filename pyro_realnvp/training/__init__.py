"""Training of flows by maximum likelihood, their files and diagnoses, and switches that trade memory, time, processes.

A function belongs here if it takes a whole flow, or any Module whose call is a log-density, and does something to it:
trains it, averages its weights, writes it to a file, says what is wrong with it, sets a switch in all of its layers.
These modules import the flow, its bases and everything below; ``tqdm``, ``safetensors`` and ``matplotlib`` are imported
by the functions that need them. A new one is a new module here, if none of these has its subject.
"""

"""Weights in and out: the reference MAE release, timm and HuggingFace, without a lost key.

reading.py opens files and runs nothing that is in them; naming.py says what each weight is called
elsewhere; shapes.py finds out what network the weights are of; converting.py turns the tensors
over; importing.py, exporting.py and inspecting.py are what a person asks for.
"""

"""What tools/make_modelslim.py is made of."""

"""Model families. family.py says what a family provides; each family has a module or package of its own. files.py, weights.py and
tokenizer.py read files from strangers, for every family."""

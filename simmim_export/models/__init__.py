"""Model families: family.py says what a family provides, and each family has a module or package of its own."""

"""A folder of static files that runs a bundle in a browser, without a server behind it.

``page/`` holds the page as it is served, and ``npm/`` says which packages it takes from npm. Only the command
``simmim-export web`` imports this package.
"""

"""The pieces of search_efficiency.py: peers in their own ways, runs that are kept, figures over seeds, a plot."""

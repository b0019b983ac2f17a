"""edgepress: compress trained vision backbones and run them at the edge.

The rooms, from the top: ``edgepress.compress`` decides, ``edgepress.export`` makes,
``edgepress.benchmarks`` measures, ``edgepress.runtime`` runs. Importing ``edgepress`` itself
imports none of them.
"""

__version__ = "0.1.0"

"""`mltrain tune run` for a Ray cluster.

ray job submit --working-dir . -- python $(mltrain jobs path sweep) -c sweep.yaml --run-id adult-nov
"""

import sys

from mltrain.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["tune", "run"]
    main()

"""`mltrain dataset build` for spark-submit.

spark-submit --packages $(mltrain jobs packages) $(mltrain jobs path build_dataset) -c adult.yaml
"""

import sys

from mltrain.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["dataset", "build"]
    main()

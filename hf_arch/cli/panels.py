"""The groups that `hf-arch --help` shows its commands in."""

LOOK = "Look and check"
TRAIN = "Train and compare"
RESULTS = "Results and models"
SHARE = "Share"

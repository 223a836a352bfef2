"""The ablation study: many short runs, each one plain `nmsfree train`, and what they show."""

"""Which training records pushed a model towards an answer, by the similarity of gradients."""

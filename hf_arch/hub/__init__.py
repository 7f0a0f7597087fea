"""From a trained model to the world: self-contained repositories, pushes with a card, conversion, quantisation."""

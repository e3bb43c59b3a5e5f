"""PyTorch modules of a SimMIM model: encoders, fusion, interaction, heads, and the checkpoint they are kept in."""

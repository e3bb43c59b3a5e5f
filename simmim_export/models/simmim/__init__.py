"""The SimMIM family: its PyTorch modules (encoders, fusion, interaction, heads), its graphs and its checkpoint."""

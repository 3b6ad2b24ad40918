"""The frozen half: dataset readers, backbones, vocabulary, extraction and the HDF5 store. Nothing here is trained."""

"""Operations and their backends; knows NumPy and the standard library only."""

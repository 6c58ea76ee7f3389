"""The methods, one file each: what teachers are told, the evidence, its placement, the options read. Imports references and credit."""

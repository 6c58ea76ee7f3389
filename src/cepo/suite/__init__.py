"""The paper's five benchmarks: lmms-eval's tasks, command line and results, one table; imports `data`, `inspection`."""

# Every target makes its own environment in .venv; without make: python3 scripts/dev.py <target>
.PHONY: help run test lint check docs docs-serve lock canary check-long mutants birds-table ablation serve-demo browser train-tiny

help run test lint check docs docs-serve lock canary check-long mutants birds-table ablation serve-demo browser train-tiny:
	@python3 scripts/dev.py $@

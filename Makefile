.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint types ci

help: ## List these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

install: ## Install the tested versions of all libraries, and the tools
	pip install -r requirements-dev.txt

test: ## Run the tests
	pytest

test-slow: ## Run the slow tests
	pytest -m slow

lint: ## Find problems and check the format
	ruff check .
	ruff format --check .

types: ## Check the types of the shipped files and of clips/
	bash .ci/types

ci: ## Run everything in a new environment
	bash .ci/run

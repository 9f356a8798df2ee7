"""Long-term memory for LangChain and LlamaIndex bots."""

"""Models that another process or machine holds, behind the OpenAI API: our server, vLLM, SGLang, Ollama, mlx servers."""

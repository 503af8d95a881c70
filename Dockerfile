# CPU: morphkv serve, from the wheels of `make wheels`.
#   docker build -t morphkv .
#   docker run -p 8080:8080 -v "$PWD/models:/models" morphkv /models/model.gguf
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY dist /wheels
RUN pip install --no-cache-dir --find-links /wheels morphkv_cpp && rm -rf /wheels
RUN useradd --create-home morphkv
USER morphkv
EXPOSE 8080
ENV LLAMA_ARG_HOST=0.0.0.0
ENTRYPOINT ["morphkv", "serve"]
CMD ["demo"]

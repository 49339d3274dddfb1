# The router in a container. Two ways to a llama-server:
#   docker build -t routermodelcustom .                               mount one, or put one into PATH
#   docker build -t routermodelcustom --build-arg BASE=IMAGE .        IMAGE: a server image of llama.cpp
# docs/deployment.md shows how to run it.
ARG BASE=python:3.12-slim
FROM ${BASE}

USER root
# A llama.cpp image has no Python; a Python image has no OpenMP, which llama-server wants.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && { python3 -c 'import ensurepip' 2>/dev/null \
         || apt-get install -y --no-install-recommends python3 python3-venv; } \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/router --create-home router
COPY requirements.txt /opt/router/
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -r /opt/router/requirements.txt
COPY run.py LICENSE /opt/router/
COPY app /opt/router/app

# llama.cpp's images keep llama-server in /app.
ENV PATH=/opt/venv/bin:$PATH:/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CONFIG_PATH=/config/config.json \
    ROUTER_API__HOST=0.0.0.0 \
    ROUTER_API__PORT=8000 \
    ROUTER_SYSTEM__LOG_DIR=/var/lib/router/logs \
    ROUTER_SYSTEM__CACHE_DIR=/var/lib/router/cache

WORKDIR /opt/router
USER router
VOLUME /var/lib/router
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['ROUTER_API__PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["python3", "/opt/router/run.py"]

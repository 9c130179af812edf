# A server of models in Flax: docker build -f deploy/flax.Dockerfile -t trivit-flax:0.1.0 .
# It writes to /tmp alone, and to /hub what it downloads: docker run --read-only --tmpfs /tmp -v hub:/hub -p 8000:8000
FROM python:3.11.17-slim-trixie AS build
# Another index beside PyPI, such as one of builds for CPUs: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY conversion conversion
COPY vit vit
RUN python -m venv /opt/trivit && \
    python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . && \
    /opt/trivit/bin/python -m pip install --no-cache-dir --constraint constraints.txt "$(ls /wheels/*.whl)[flax,serve]"

FROM python:3.11.17-slim-trixie
COPY --from=build /opt/trivit /opt/trivit
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin trivit && \
    install --directory --owner trivit --group trivit /hub
ENV PATH=/opt/trivit/bin:$PATH HF_HOME=/hub PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["vit", "serve", "--host", "0.0.0.0", "--framework", "flax"]

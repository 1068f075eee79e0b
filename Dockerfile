# swarmd in a container, from the locks: `docker build -t swarmd .`, with `--build-arg LOCK=cuda` for NVIDIA GPUs.
#   docker run -v swarmd:/var/lib/swarmd -p 4001:4001 swarmd start --model tiny
#   docker run --gpus all -v swarmd:/var/lib/swarmd -p 4001:4001 swarmd start --gpu 0 --bootstrap MULTIADDR

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG LOCK=cpu
RUN python -m venv /opt/swarmd
COPY locks/${LOCK}.txt /tmp/lock.txt
# PyPI has no build of torch for CPUs. Hashes hold for every index.
RUN index=; if [ "${LOCK}" = cpu ]; then index="--extra-index-url https://download.pytorch.org/whl/cpu"; fi; \
    /opt/swarmd/bin/pip install --no-cache-dir --no-deps --require-hashes ${index} -r /tmp/lock.txt
COPY pyproject.toml README.md LICENSE /src/
COPY configs /src/configs
COPY swarmctl /src/swarmctl
COPY swarmd /src/swarmd
RUN /opt/swarmd/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM python:${PYTHON}-slim
RUN useradd --system --home-dir /var/lib/swarmd --create-home swarmd
COPY --from=build /opt/swarmd /opt/swarmd
ENV PATH=/opt/swarmd/bin:$PATH SWARMD_HOME=/var/lib/swarmd
USER swarmd
VOLUME /var/lib/swarmd
EXPOSE 4001
# A drain takes up to 60 s: give `docker stop --time 90`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["swarmd"]
CMD ["start", "--idle"]

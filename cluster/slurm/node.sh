#!/usr/bin/env bash
# One Ray node of a Slurm job; sharpening.sbatch starts it there with srun.
#
#     node.sh address                     prints this node's address in the cluster's network
#     node.sh head ADDRESS:PORT LABELS    runs the head until it is told to stop
#     node.sh worker ADDRESS:PORT LABELS  runs a worker
set -euo pipefail

own_address() {
    if [[ -n ${RAY_INTERFACE:-} ]]; then
        ip -4 -oneline address show dev "$RAY_INTERFACE" | awk '{ sub("/.*", "", $4); print $4; exit }'
    else
        hostname -I | cut -d' ' -f1
    fi
}

own=$(own_address)
[[ -n $own ]] || { echo "$(hostname) has no IPv4 address${RAY_INTERFACE:+ on $RAY_INTERFACE}" >&2; exit 1; }

start() {
    # Only what Slurm gave this job; temporary files where nobody else's Ray keeps its own.
    exec ray start --block --node-ip-address "$own" --temp-dir "${TMPDIR:-/tmp}/ray-$SLURM_JOB_ID" \
        --dashboard-agent-listen-port "$AGENT_PORT" \
        --num-cpus "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
        --labels "$labels" "$@"
}

role=$1 address=${2:-} labels=${3:-}
case $role in
    address) echo "$own" ;;
    head)
        start --head --port "${address##*:}" --dashboard-host 127.0.0.1 --dashboard-port "$DASHBOARD_PORT" \
            --ray-client-server-port "$CLIENT_PORT"
        ;;
    worker)
        deadline=$((SECONDS + ${START_TIMEOUT_S:-600}))
        until ray health-check --address "$address" > /dev/null 2>&1; do # the head starts at the same time
            ((SECONDS < deadline)) || { echo "$(hostname): no head answers at $address" >&2; exit 1; }
            sleep 1
        done
        start --address "$address"
        ;;
    *) echo "node.sh: '$role' is neither address, head nor worker" >&2; exit 2 ;;
esac

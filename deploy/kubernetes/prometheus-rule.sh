#!/bin/sh
# Prints the alerts of deploy/prometheus as a PrometheusRule, so that they are written once:
#   sh deploy/kubernetes/prometheus-rule.sh | kubectl apply --namespace exemplar --filename -
set -eu
cat <<'HEAD'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: exemplar
  labels:
    app.kubernetes.io/name: exemplar
    app.kubernetes.io/part-of: exemplar
spec:
HEAD
sed 's/^/  /' "$(dirname "$0")/../prometheus/alerts.yml"

#!/bin/sh
# Prints the recording rules and alerts of deploy/prometheus as a PrometheusRule:
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
rules="$(dirname "$0")/../prometheus"
sed 's/^/  /' "$rules/recording.yml"
sed '/^groups:$/d; s/^/  /' "$rules/alerts.yml" # continues the list of groups

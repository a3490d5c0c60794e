{{- /* The name of everything: that of the release, with lally in it. */ -}}
{{- define "lally.name" -}}
{{- if contains "lally" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-lally" (.Release.Name | trunc 34 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "lally.labels" -}}
app.kubernetes.io/name: lally
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* Every node, the one that reads it included: a node that has lost its disk must join the others, and
  none may found a cluster while it cannot see them all. */ -}}
{{- define "lally.seeds" -}}
{{- $name := include "lally.name" . -}}
{{- $seeds := list -}}
{{- range $i := until (int .Values.replicas) -}}
{{- $seeds = append $seeds (printf "%s-%d.%s-peers.$(POD_NAMESPACE).svc:50071" $name $i $name) -}}
{{- end -}}
{{- join "," $seeds -}}
{{- end -}}

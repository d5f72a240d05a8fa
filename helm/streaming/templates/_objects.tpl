{{/* (dict "root" $ "role" "node") -> what every role has beside its workload: configuration, Service. */}}
{{- define "streaming.roleObjects" -}}
{{- $role := index .root.Values .role -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "streaming.name" . }}
  {{- include "streaming.metadata" . | nindent 2 }}
data:
  streaming.yaml: |
    {{- include "streaming.config" . | nindent 4 }}
---
{{- /* Without an address of its own: processes find one another through etcd; this is for metrics and stable names. */}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "streaming.name" . }}
  {{- include "streaming.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: {{ eq .role "logstore" }}
  selector:
    {{- include "streaming.selector" . | nindent 4 }}
  ports:
    {{- with $role.ports.grpc }}
    - {name: grpc, port: {{ int . }}, targetPort: grpc, protocol: TCP}
    {{- end }}
    - {name: admin, port: {{ int $role.ports.admin }}, targetPort: admin, protocol: TCP}
{{- end -}}

{{/* (dict "root" $ "role" "node" "group" "blue" "values" values) -> the workload's disruption budget. */}}
{{- define "streaming.budget" -}}
{{- $role := default (index .root.Values .role) .values -}}
{{- if $role.pdb.enabled }}
---
apiVersion: {{ include "streaming.pdbVersion" .root }}
kind: PodDisruptionBudget
metadata:
  name: {{ include "streaming.workload" . }}
  {{- include "streaming.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  {{- if semverCompare ">=1.27-0" .root.Capabilities.KubeVersion.Version }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  {{- end }}
  selector:
    matchLabels:
      {{- include "streaming.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* (dict "context" (dict "root" $ "role" "etcd") "persistence" values) -> the claim template of a bundled store. */}}
{{- define "streaming.bundledClaim" -}}
{{- with .persistence }}
{{- if .enabled }}
volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata:
      name: data
      labels:
        {{- include "streaming.selector" $.context | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      {{- if .storageClass }}
      storageClassName: {{ .storageClass | quote }}
      {{- end }}
      resources:
        requests:
          storage: {{ .size | quote }}
{{- end }}
{{- end }}
{{- end -}}

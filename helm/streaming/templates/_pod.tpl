{{/* (dict "root" $ "role" "node") -> the pod template of a role; of a resource group with "group" and its "values". */}}
{{- define "streaming.podTemplate" -}}
{{- $values := .root.Values -}}
{{- $role := default (index $values .role) .values -}}
{{- $config := include "streaming.config" . -}}
metadata:
  labels:
    {{- include "streaming.labels" . | nindent 4 }}
    {{- with $role.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ sha256sum $config }}
    {{- with merge (dict) $role.podAnnotations $values.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "streaming.serviceAccount" .root }}
  automountServiceAccountToken: false
  {{- /* A Service called streaming-conf would otherwise set variables that the binary takes for keys. */}}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $role.terminationGracePeriodSeconds }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "streaming.securityContext" (dict "root" .root "role" .role "of" "podSecurityContext") | nindent 4 }}
  {{- with $role.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .role }}
      {{- include "streaming.container" . | nindent 6 }}
    {{- with $role.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "streaming.volumes" . | nindent 4 }}
    {{- with $role.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "streaming.spread" . }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- include "streaming.placement" $role | nindent 2 }}
{{- end -}}

{{/* Where a role's pods may run, and how they find hosts. */}}
{{- define "streaming.placement" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "hostAliases" "dnsConfig" "priorityClassName" "runtimeClassName" "schedulerName" }}
{{- with index $ $key }}
{{ $key }}: {{ if kindIs "string" . }}{{ . | quote }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "streaming.container" -}}
{{- $values := .root.Values -}}
{{- $role := default (index $values .role) .values -}}
image: {{ include "streaming.image" . | quote }}
imagePullPolicy: {{ default $values.image.pullPolicy (dig "image" "pullPolicy" "" $role) }}
args:
  - {{ .role }}
  {{- with $role.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  {{- include "streaming.env" . | nindent 2 }}
  {{- with $role.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $role.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- with $role.ports.grpc }}
  - {name: grpc, containerPort: {{ int . }}, protocol: TCP}
  {{- end }}
  - {name: admin, containerPort: {{ int $role.ports.admin }}, protocol: TCP}
startupProbe:
  httpGet: {path: /livez, port: admin, scheme: {{ include "streaming.adminScheme" .root }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: admin, scheme: {{ include "streaming.adminScheme" .root }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin, scheme: {{ include "streaming.adminScheme" .root }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- /* Helm 3.18.0 takes a 0 for text, which is true. */}}
{{- if int $role.drain.preStopSeconds }}
lifecycle:
  preStop:
    sleep: {seconds: {{ int $role.drain.preStopSeconds }}}
{{- end }}
resources:
  {{- toYaml $role.resources | nindent 2 }}
securityContext:
  {{- include "streaming.securityContext" (dict "root" .root "role" .role "of" "containerSecurityContext") | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/streaming/config, readOnly: true}
  {{- if $values.existingConfigMap }}
  - {name: own-config, mountPath: /etc/streaming/own-config, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  {{- with include "streaming.secretMounts" .root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if eq (include "streaming.objectClaim" .) "true" }}
  - {name: objects, mountPath: /objects}
  {{- end }}
  {{- if eq .role "logstore" }}
  - {name: data, mountPath: /data}
  {{- end }}
  {{- if and (eq .role "replicate") $role.targets }}
  - {name: targets, mountPath: /etc/streaming/targets, readOnly: true}
  {{- end }}
  {{- with $role.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "streaming.env" -}}
{{- $values := .root.Values -}}
{{- $role := default (index $values .role) .values -}}
- name: STREAMING_CONFIG
  value: /etc/streaming/config/streaming.yaml{{ if $values.existingConfigMap }},/etc/streaming/own-config/{{ $values.existingConfigMapKey }}{{ end }}
{{- with .group }}
- name: MILVUS_SERVER_LABEL_RESOURCE_GROUP
  value: {{ . | quote }}
{{- end }}
{{- include "streaming.clientEnv" .root | nindent 0 }}
- name: STREAMING_ADMIN
  value: "{{ include "streaming.adminScheme" .root | lower }}://127.0.0.1:{{ int $role.ports.admin }}"
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- with include "streaming.advertiseVariable" . }}
- name: {{ . }}
  {{- if eq $.role "logstore" }}
  value: "$(POD_NAME).{{ include "streaming.name" $ }}.{{ $.root.Release.Namespace }}.svc.{{ $values.clusterDomain }}:{{ int $role.ports.grpc }}"
  {{- else if contains ":" $values.listenAddress }}
  value: "[$(POD_IP)]:{{ int $role.ports.grpc }}"
  {{- else }}
  value: "$(POD_IP):{{ int $role.ports.grpc }}"
  {{- end }}
{{- end }}
{{- /* A log store says in which zone it is, the others which replicas are near them. */}}
{{- $zone := $values.logstore.zone }}
{{- $variable := ternary "STREAMING_CONF_WOODPECKER_LOGSTORE_ZONE" "STREAMING_CONF_WOODPECKER_CLIENT_QUORUM_AZ" (eq .role "logstore") }}
{{- if or (eq .role "logstore") (and (has "quorum" (include "streaming.backends" .root | fromJsonArray)) (ne .role "replicate")) }}
{{- if and (eq .role "logstore") (eq $zone.source "static") }}
- name: {{ $variable }}
  value: {{ $zone.value | quote }}
{{- else if and (eq $zone.source "auto") (semverCompare ">=1.35-0" .root.Capabilities.KubeVersion.Version) }}
- name: {{ $variable }}
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['topology.kubernetes.io/zone']"}}
{{- end }}
{{- end }}
{{- if eq (include "streaming.objectStorageKeys" .) "true" }}
- name: STREAMING_CONF_MINIO_ACCESSKEYID
  valueFrom: {secretKeyRef: {name: {{ include "streaming.objectStorageSecret" .root }}, key: {{ $values.objectStorage.accessKeyKey }}}}
- name: STREAMING_CONF_MINIO_SECRETACCESSKEY
  valueFrom: {secretKeyRef: {name: {{ include "streaming.objectStorageSecret" .root }}, key: {{ $values.objectStorage.secretKeyKey }}}}
{{- end }}
{{- with $values.etcd.auth }}
{{- if .enabled }}
- name: STREAMING_CONF_ETCD_AUTH_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .userKey }}}}
- name: STREAMING_CONF_ETCD_AUTH_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .passwordKey }}}}
{{- end }}
{{- end }}
{{- end -}}

{{/* What the verbs need to find the cluster and be let in: for the pod of `helm test`, and for whoever looks around in a pod. */}}
{{- define "streaming.clientEnv" -}}
- name: STREAMING_ETCD
  value: {{ include "streaming.etcdEndpoints" . | quote }}
- name: STREAMING_META_ROOT
  value: "{{ .Values.etcd.rootPath }}/{{ .Values.etcd.metaSubPath }}"
- name: STREAMING_CLUSTER
  value: {{ dig "msgChannel" "chanNamePrefix" "cluster" "by-dev" .Values.config | quote }}
{{- if .Values.tls.enabled }}
- {name: STREAMING_CA, value: /etc/streaming/tls/ca.crt}
- {name: STREAMING_SERVER_NAME, value: {{ include "streaming.serverName" . }}}
{{- if ne .Values.tls.clientAuth "none" }}
- {name: STREAMING_CERT, value: /etc/streaming/tls/tls.crt}
- {name: STREAMING_KEY, value: /etc/streaming/tls/tls.key}
{{- end }}
{{- end }}
{{- if .Values.auth.enabled }}
- {name: STREAMING_TOKEN_FILE, value: /etc/streaming/auth/token}
{{- end }}
{{- with .Values.etcd.auth }}
{{- if .enabled }}
- name: STREAMING_ETCD_USER
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .userKey }}}}
- {name: STREAMING_ETCD_PASSWORD_FILE, value: /etc/streaming/etcd-auth/password}
{{- end }}
{{- end }}
{{- with .Values.etcd.tls }}
{{- if .enabled }}
- {name: STREAMING_ETCD_CA, value: /etc/streaming/etcd-tls/ca.crt}
{{- if .clientCertificate }}
- {name: STREAMING_ETCD_CERT, value: /etc/streaming/etcd-tls/tls.crt}
- {name: STREAMING_ETCD_KEY, value: /etc/streaming/etcd-tls/tls.key}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Whether the role reads or writes objects: log stores keep theirs on their disks, and what ships asks nodes. */}}
{{- define "streaming.usesObjects" -}}
{{- has .role (list "coord" "node") -}}
{{- end -}}

{{/* Whether the role's keys to object storage come from a Secret. */}}
{{- define "streaming.objectStorageKeys" -}}
{{- $s3 := .root.Values.objectStorage -}}
{{- and (ne $s3.provider "filesystem") (eq $s3.auth "static") (eq (include "streaming.usesObjects" .) "true") -}}
{{- end -}}

{{/* Whether the role's object storage is a claim. */}}
{{- define "streaming.objectClaim" -}}
{{- and (eq .root.Values.objectStorage.provider "filesystem") (eq (include "streaming.usesObjects" .) "true") -}}
{{- end -}}

{{- define "streaming.volumes" -}}
{{- $values := .root.Values -}}
- name: config
  configMap: {name: {{ include "streaming.name" . }}}
{{- with $values.existingConfigMap }}
- name: own-config
  configMap: {name: {{ . }}}
{{- end }}
- name: tmp
  emptyDir: {}
{{- include "streaming.secretVolumes" . }}
{{- if eq (include "streaming.objectClaim" .) "true" }}
- name: objects
  persistentVolumeClaim: {claimName: {{ $values.objectStorage.existingClaim }}}
{{- end }}
{{- if and (eq .role "replicate") $values.replicate.targets }}
- name: targets
  projected:
    defaultMode: 0440
    sources:
      {{- range $id, $target := $values.replicate.targets }}
      - secret:
          name: {{ $target.existingSecret }}
          items:
            {{- with dig "caKey" "ca.crt" $target }}
            - {key: {{ . }}, path: {{ $id }}/ca.crt}
            {{- end }}
            {{- with dig "tokenKey" "token" $target }}
            - {key: {{ . }}, path: {{ $id }}/token}
            {{- end }}
      {{- end }}
{{- end }}
{{- if and (eq .role "logstore") (not $values.logstore.persistence.enabled) }}
- name: data
  emptyDir: {}
{{- end }}
{{- end -}}

{{- define "streaming.spread" -}}
{{- $role := default (index .root.Values .role) .values -}}
{{- $dot := . -}}
{{- range $where, $key := dict "zone" "topology.kubernetes.io/zone" "host" "kubernetes.io/hostname" }}
{{- $how := index $role.topologySpread $where }}
{{- if ne $how "off" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: {{ $how }}
  labelSelector:
    matchLabels:
      {{- include "streaming.selector" $dot | nindent 6 }}
  {{- /* Without it a rolling update is spread over old and new pods together. */}}
  {{- if and (ne $dot.role "logstore") (semverCompare ">=1.27-0" $dot.root.Capabilities.KubeVersion.Version) }}
  matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

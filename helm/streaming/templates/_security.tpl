{{/* (dict "root" $ "role" "node" "of" "podSecurityContext") -> the common one with what the role sets; null takes a key away. */}}
{{- define "streaming.securityContext" -}}
{{- $context := deepCopy (index .root.Values .of) -}}
{{- range $key, $value := index .root.Values .role .of -}}
{{- if kindIs "invalid" $value }}{{ $_ := unset $context $key }}{{ else }}{{ $_ := set $context $key $value }}{{ end -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* The name in the certificate of all roles. */}}
{{- define "streaming.serverName" -}}
{{- default (printf "%s.%s.svc" (include "streaming.fullname" .) .Release.Namespace) .Values.tls.serverName -}}
{{- end -}}

{{/* Every name that a certificate of ours must carry, as a list: the common one, the Services', the pods', loopback. */}}
{{- define "streaming.certificateNames" -}}
{{- $names := list (include "streaming.serverName" .) "localhost" -}}
{{- range $role := list "coord" "node" "logstore" "replicate" -}}
{{- $service := printf "%s.%s.svc" (include "streaming.name" (dict "root" $ "role" $role)) $.Release.Namespace -}}
{{- $full := printf "%s.%s" $service $.Values.clusterDomain -}}
{{- $names = concat $names (list $service $full (printf "*.%s" $full)) -}}
{{- end -}}
{{- toJson (uniq $names) -}}
{{- end -}}

{{- define "streaming.tlsSecret" -}}
{{- default (printf "%s-tls" (include "streaming.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "streaming.authSecret" -}}
{{- default (printf "%s-auth" (include "streaming.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{/* The scheme of the admin port. */}}
{{- define "streaming.adminScheme" -}}
{{- ternary "HTTPS" "HTTP" (and .Values.tls.enabled .Values.tls.admin.enabled) -}}
{{- end -}}

{{/* Mounts of the Secrets, whole directories: a file mounted by itself would never change. */}}
{{- define "streaming.secretMounts" -}}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /etc/streaming/tls, readOnly: true}
{{- end }}
{{- if .Values.auth.enabled }}
- {name: auth, mountPath: /etc/streaming/auth, readOnly: true}
{{- end }}
{{- if .Values.etcd.tls.enabled }}
- {name: etcd-tls, mountPath: /etc/streaming/etcd-tls, readOnly: true}
{{- end }}
{{- if .Values.etcd.auth.enabled }}
- {name: etcd-auth, mountPath: /etc/streaming/etcd-auth, readOnly: true}
{{- end }}
{{- if .Values.objectStorage.caSecret }}
- {name: s3-ca, mountPath: /etc/streaming/s3-ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "role" "node") -> the volumes of these mounts. Only the roles get the list of tokens. */}}
{{- define "streaming.secretVolumes" -}}
{{- $values := .root.Values -}}
{{- with $values.tls }}
{{- if .enabled }}
- name: tls
  secret:
    secretName: {{ include "streaming.tlsSecret" $.root }}
    defaultMode: 0440
    items:
      - {key: {{ .caKey }}, path: ca.crt}
      - {key: {{ .certKey }}, path: tls.crt}
      - {key: {{ .keyKey }}, path: tls.key}
{{- end }}
{{- end }}
{{- with $values.auth }}
{{- if .enabled }}
- name: auth
  secret:
    secretName: {{ include "streaming.authSecret" $.root }}
    defaultMode: 0440
    items:
      - {key: {{ .tokenKey }}, path: token}
      {{- if ne $.role "test" }}
      - {key: {{ .tokensKey }}, path: tokens}
      {{- end }}
{{- end }}
{{- end }}
{{- with $values.etcd.tls }}
{{- if .enabled }}
- name: etcd-tls
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ .caKey }}, path: ca.crt}
      {{- if .clientCertificate }}
      - {key: {{ .certKey }}, path: tls.crt}
      - {key: {{ .keyKey }}, path: tls.key}
      {{- end }}
{{- end }}
{{- end }}
{{- with $values.etcd.auth }}
{{- if .enabled }}
- name: etcd-auth
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ .passwordKey }}, path: password}
{{- end }}
{{- end }}
{{- with $values.objectStorage }}
{{- if .caSecret }}
- name: s3-ca
  secret:
    secretName: {{ .caSecret }}
    defaultMode: 0440
    items:
      - {key: {{ .caKey }}, path: ca.crt}
{{- end }}
{{- end }}
{{- end -}}

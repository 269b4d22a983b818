"""Neuronpedia, out and in: a run as the tables or the calls it takes, and published features as a run.

Formats: hijohnnylin/neuronpedia (apps/webapp/app/api/feature/upload-batch/route.tsx, lib/db/import.ts,
prisma/schema.prisma) and decoderesearch/SAEDashboard.
"""
